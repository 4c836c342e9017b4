"""The one error that reaches the user as a single line."""


class InputError(ValueError):
    """Something the user gave us is wrong: a file, a value, a name.

    The message is one line that says what is wrong, where, and what to do. `snn.cli.run` prints it and ends the
    program with exit code 2; a library user catches it as a ValueError.
    """
