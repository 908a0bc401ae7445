qspec 1

extends "bases/bad_scheme.qs"

layers head use w8a8
