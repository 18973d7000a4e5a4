"""A session policy that limits how many recipients each user who has logged in may have in a time.

A user whose password was stolen is stopped after so many, and not after a night of spam. The counts are in memory, of a
bounded number of users, and begin anew with the guard.
"""

import re
from collections import OrderedDict
from typing import Any

from twisted.plugin import IPlugin
from zope.interface import implementer

from twisted_smtpguard import PolicyRequest, PolicyVerdict, Reply
from twisted_smtpguard.interfaces import ISessionPolicy, ISessionPolicyFactory

MAX_USERS = 10_000
"""Of how many users it counts. The one who has been idle for longest is forgotten first."""

OVER_QUOTA = Reply(450, "4.7.1", ("You have sent to too many recipients, try again later",))


@implementer(ISessionPolicy)
class UserQuota:
    """At most `recipients` in `seconds` for each user. `clock` tells the time."""

    stages = frozenset({"rcpt"})

    def __init__(self, recipients: int, seconds: int, clock: Any) -> None:
        self._recipients = recipients
        self._seconds = seconds
        self._clock = clock
        self._users: OrderedDict[str, tuple[float, int]] = OrderedDict()
        """Of each user when the count began, and the count."""

    def check(self, request: PolicyRequest) -> PolicyVerdict:
        user = request.identity
        if user is None:
            return PolicyVerdict.dunno()
        now = self._clock.seconds()
        began, count = self._users.pop(user, (now, 0))
        if now - began >= self._seconds:
            began, count = now, 0
        self._users[user] = began, count + 1
        if len(self._users) > MAX_USERS:
            self._users.popitem(last=False)
        if count < self._recipients:
            return PolicyVerdict.dunno()
        return PolicyVerdict.refuse(OVER_QUOTA, f"over {self._recipients}/{self._seconds}")


@implementer(IPlugin, ISessionPolicyFactory)
class UserQuotaFactory:
    name = "user-quota"
    summary = "Limit the recipients of each user who has logged in."
    argument_format = "RECIPIENTS/SECONDS, such as 500/3600."

    def make_policy(self, argument: str, reactor: object) -> UserQuota:
        numbers = re.fullmatch("([1-9][0-9]{0,8})/([1-9][0-9]{0,8})", argument)
        if numbers is None:
            raise ValueError(f"user-quota needs RECIPIENTS/SECONDS, such as 500/3600, not {argument!r}")
        return UserQuota(int(numbers[1]), int(numbers[2]), reactor)
