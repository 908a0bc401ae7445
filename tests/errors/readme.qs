qspec 1

recipe mistakes {
  family llada
  model  "GSAI-ML/LLaDA-8B-Instruct"
}

scheme w4a4 {
  weights     int4 per chanel symmetric
  activations int4 per token  symmetric clip mse
}

layers blocks[*].attn.q use w4a4
apply gptq() on blocks[*].*
apply smoth(alpha = 2) on blocks[*].*
