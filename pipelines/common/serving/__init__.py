"""What any service over HTTP needs that works on uploads, and that knows nothing of what is in them.

Belongs here: limits of requests, work on hostile files in processes of their own, batches across requests, the newest
model while serving, metrics and logs. BentoML is not known here; what an upload shows and what is answered
(`pipelines.openpack.serve`) is not either.
"""
