"""Inside the worker process: find the gated FFNs, take their signs, say whose rows they are."""

PLAN_KEY = "sparcom"  # where a request's plan lies in SamplingParams.extra_args
