qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per token   symmetric
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

# allow QS045: the collapse is what this shows
layers blocks[*].* use w4a4
layers blocks[0].mlp.down use w4a4
layers blocks[1..3].mlp.down use w8a8  # allow QS034: of another code

apply rtn() on blocks[*].*
