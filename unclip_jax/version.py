"""The version of the code, written into every manifest."""

__version__ = "0.1.0"
