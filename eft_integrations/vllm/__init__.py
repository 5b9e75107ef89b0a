"""Trios inside vLLM: an out-of-tree model that composes base, tuned and reference models, with weights per request.

    register.py          what vLLM calls in each of its processes
    trio_options.py      which models make the trio (travels to all processes in the base's configuration)
    request_weights.py   the weights of a request: reading and checking
    checks.py            what is set and refused before anything is loaded
    admission.py         bad weights end as an error of their request, in the front end
    members.py           each member as vLLM's own model, with its own layers, caches and quantisation
    composing.py         the tensor functions
    model.py             the model: all members forward, one composition of their logits
    model_state.py       weights to the model in vLLM's Model Runner V2
    cpu_worker.py        the same in its older runner, which is what runs on a CPU
    middleware.py        names and weights of `eft serve` on vLLM's own server
    launch.py            the command that starts it

Importing this package imports nothing of vLLM.
"""
