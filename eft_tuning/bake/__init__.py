"""`eft bake`: one LoRA of the base that answers as a composition does, for places where only one model can be served.

settings, prompts        what is asked for
divergence               the mathematics, by itself
sampling, rounds         answers, of the composition and of the adapter, and what the composition says at their tokens
rows, student, training  what is learnt, by whom, and how
measure, report          what is left of the composition, and the folder
run, command             the way, and its options
"""
