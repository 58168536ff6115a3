"""Subcommands of `sample` that edit images, one module each."""
