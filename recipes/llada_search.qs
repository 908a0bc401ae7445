qspec 1

# Where to look for a mixed-precision LLaDA-8B: `qspec search recipes/llada_search.qs --budget "4.25 bits"` writes the recipe
# that it finds. Compiled as it is, this one gives every layer the scheme of the rules below.
recipe llada_search {
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

scheme w2 {
  weights     int2 per group 64 symmetric
  activations none
}

scheme w3 {
  weights     int3 per group 128 symmetric
  activations none
}

scheme w4 {
  weights     int4 per group 128 symmetric
  activations none
}

scheme w8 {
  weights     int8 per group 128 symmetric
  activations none
}

layers blocks[*].*     use w4
layers head, embedding keep

apply gptq(damp = 0.01, order = activation) on blocks[*].*

search {
  offer   w2, w3, w4, w8 on blocks[*].*
  budget  4.25 bits
  loss    kl on "wikitext2"
  samples 16
  length  512
  draws   4
  refine  16
}

evaluate {
  nelbo on "wikitext2" samples 64
  task  mmlu
  task  gsm8k { shots 4  length 256  steps 256  block 32 }
  task  humaneval { length 512  steps 512  block 32 }
}

emit {
  kernels triton for sm_90, sm_80
  regime  block_decode
}
