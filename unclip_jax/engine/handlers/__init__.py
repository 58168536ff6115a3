"""Handlers of requests: a module per kind, with `run(engine, request) -> Result`.

A module is named like its request in `engine/requests.py`, which finds it by that name.
"""
