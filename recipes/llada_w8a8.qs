qspec 1

# W8A8 for LLaDA-8B: smoothing is enough at 8 bits; rounding to nearest does the rest.
recipe llada_w8a8 {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct" revision "main"
}

calibrate {
  text    "wikitext2"
  samples 128
  length  2048
  mask    uniform(0.0, 1.0)  # share of tokens masked, drawn per sample
  seed    0
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].*     use w8a8
layers head, embedding keep

apply smooth(alpha = 0.5) on blocks[*].*
apply rtn()               on blocks[*].*

evaluate {
  nelbo on "wikitext2" samples 64
  task  mmlu
  task  gsm8k { shots 4  length 256  steps 256  block 32 }
  task  humaneval { length 512  steps 512  block 32 }
}

emit {
  kernels triton for sm_90, sm_80
  regime  block_decode, full_sequence  # the numbers of tokens that a forward pass will carry
}
