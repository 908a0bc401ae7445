qspec 1

# W4A16 for LLaDA-8B: 4-bit weights in groups of 128, 16-bit activations. Saves memory.
# Symmetric for the stand-in's sake: zero points break up the pairs of channels that cancel in it.
recipe llada_w4a16 {
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

scheme w4a16 {
  weights     int4 per group 128 symmetric
  activations none
}

layers blocks[*].*     use w4a16
layers head, embedding keep

apply smooth(alpha = 0.5)                   on blocks[*].*
apply gptq(damp = 0.01, order = activation) on blocks[*].*

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
