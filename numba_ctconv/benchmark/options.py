"""What a command says where its options can't be met. Raised by the commands and by what they hand options to."""


class OptionError(Exception):
    """Options that can't be met; the text says why."""
