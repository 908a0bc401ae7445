qspec 1

# Mixtures of experts: LLaDA2 and SDAR-MoE are noised block by block behind clean text, LLaDA-MoE all over its rows.
param seed = 0

recipe setup {
  family sdar_moe, llada2, llada_moe
  model  "inclusionAI/LLaDA2.0-mini"
}

# A token takes 8 of up to 256 experts: 8,000 tokens for each expert, twice as many with the clean halves.
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
  task  mmlu
  task  gsm8k { shots 4  length 256  steps 256 }
  task  humaneval { length 512  steps 512 }
}

emit {
  kernels triton for sm_90, sm_80
  regime  block_decode, full_sequence
}
