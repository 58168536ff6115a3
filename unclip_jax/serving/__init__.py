"""serving: an HTTP API and a web page for the requests of `engine`.

Contains a queue with one worker (job_queue.py), the service that runs requests (service.py), their
limits and schemas (schemas.py), the HTTP API (api.py, bodies.py, responses.py, errors.py), the jobs
of the page (job_store.py), access control (access.py), the page (page.py, static/) and the server
loop (server.py); judging.py is the page on which raters compare two models. Sampling itself is in
`engine`. Start at service.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "core",
    "data",
    "engine",
    "inference",
)
