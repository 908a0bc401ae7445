qspec 1

# DiffusionGemma: canvases of 256 tokens, some of them noise, behind clean text that is read causally.
param seed = 0

recipe setup {
  family diffusion_gemma
  model  "google/diffusiongemma-26B-A4B-it"
}

# A token takes 8 of 128 experts: 16,000 tokens for each expert, twice as many with the clean halves.
calibrate {
  text    "wikitext2"
  samples 128
  length  2048
  mask    uniform(0.0, 1.0)
  seed    $seed
}

layers head, embedding keep

evaluate {
  nelbo on "wikitext2" samples 64
  task  gsm8k { shots 4  length 256  steps 48 }
  task  humaneval { length 512  steps 96 }
}

emit {
  kernels triton for sm_90, sm_80
  regime  block_decode, full_sequence
}
