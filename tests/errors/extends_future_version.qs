qspec 1

extends "bases/future.qs"
