qspec 1

recipe r {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w8 {
  weights int8 per channel symmetric
}

layers blocks[*].* use w8

apply rtn() on blocks[*].*

evaluate {
  task gsm8k { shots 4 }
  require nelbo loss <= 2 %
  require nelbo on "c4" loss <= 2 %
}
