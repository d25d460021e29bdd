# Room 5 of 5, steps: a whole model's step, and who computes what. Weights and adapters of a model, threads and how work is
# dealt to them, one step of inference (decoder) and one of training (trainstep) with the memory they use.
# Uses: all the others but text.  Belongs here: schedules, buffers, barriers.  No arithmetic of a layer of its own.
