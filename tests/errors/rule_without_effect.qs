qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

scheme w4a4 {
  weights     int4 per channel symmetric
  activations int4 per token   symmetric
}

layers blocks[*].* use w8a8

# the first block too
layers blocks[0].*         use w8a8
layers blocks[*].mlp.down  use w4a4
layers blocks[2..4].*.down use w4a4  # stays w4a4

apply rotate_duquant() on blocks[*].*
apply rtn() on blocks[*].*
