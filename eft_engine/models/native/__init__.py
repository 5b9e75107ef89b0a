"""Networks of common families on a CPU, computed by kernels of our own in C.

A pass of few tokens in torch spends as long on dispatching small operations as on reading weights. Here a whole pass is one call.
The kernels are compiled once on the machine that runs them (`build`), for its processor; where that cannot be, or for another
family, torch computes.

What a row becomes depends on no other row, on no order and on no number of threads, to the bit. So texts are the same whoever
steps beside them, however they were drafted or cut into chunks, in every dtype.
"""
