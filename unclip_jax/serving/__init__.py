"""serving: an HTTP API and a web page for the requests of `engine`.

Holds a queue with one worker (job_queue.py), the service that runs requests (service.py), their
limits and schemas (schemas.py), the HTTP API (api.py, bodies.py, responses.py, errors.py), jobs
that the page follows (job_store.py), access (access.py), the page (page.py, static/) and the loop
(server.py); the page on which raters compare two models is judging.py. Sampling itself is in
`engine`. Start at service.py.
"""

MAY_IMPORT: tuple[str, ...] = (
    "core",
    "data",
    "engine",
    "inference",
)
