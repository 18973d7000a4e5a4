"""What `twist` finds. This folder has no __init__.py: it is Twisted's. It imports nothing that chooses a reactor."""

from twisted.application.service import ServiceMaker

mailroom = ServiceMaker("mailroom", "mailroom.tap", "Receives mail.", "mailroom")
