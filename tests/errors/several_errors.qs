qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w8a8 {
  weights     int8 per channel symmetric
  activations int8 per token   symmetric
}

layers blocks[*].* ues w8a8
layer head keep
layers embedding keep

apply rnt() on blocks[*].*
apply smooth(alpha = 2.0) on blocks[*].*
apply rtn() on

calibrat {
  samples 3
}
