"""Rules that map the dependencies of an operation's arguments to those of its result."""
