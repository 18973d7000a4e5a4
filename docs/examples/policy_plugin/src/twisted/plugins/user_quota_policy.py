"""What `twist smtpguard --policy-plugin` finds. This folder has no __init__.py: it is Twisted's."""

from user_quota import UserQuotaFactory

user_quota = UserQuotaFactory()
