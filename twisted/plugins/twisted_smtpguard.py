"""What `twist` finds: the `smtpguard` subcommand. Imports nothing that would choose a reactor."""

from twisted.application.service import ServiceMaker

smtpguard = ServiceMaker(
    "twisted_smtpguard",
    "twisted_smtpguard.tap",
    "An SMTP service that stays up under abuse.",
    "smtpguard",
)
