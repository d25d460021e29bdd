"""From a prompt to new tokens: the sampler, the engine that runs many requests at once, and the text they make."""
