qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].mlp.down keep
layers blocks[*].attention.* use w8a8
layers head, embedding keep

apply rtn() on blocks[*].attention.*
