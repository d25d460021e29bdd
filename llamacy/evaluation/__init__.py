"""Models and adapters beside each other: perplexity, divergence from a reference, right answers; start at compare."""
