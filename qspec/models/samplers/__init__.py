"""How text is denoised: what all samplers share (`common`), and one file for each family's own sampler."""
