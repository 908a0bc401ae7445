qspec 1

# Plain rounding to W4A4, the floor: without help against outliers the model collapses.
recipe llada_rtn_w4a4 {
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

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per token   symmetric
}

# allow QS045: what happens without help against outliers is what this recipe shows
layers blocks[*].*     use w4a4
layers head, embedding keep

apply rtn() on blocks[*].*

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
