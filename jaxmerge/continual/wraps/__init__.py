"""What methods change in a network: functions ``Model -> Model`` that add leaves.

======  ===============================================================  ==================
module  what it adds                                                     used by
======  ===============================================================  ==================
head    a head in the place of the model's                               lingocl, prd
lora    a low-rank change of chosen kernels, one slot a task             lora, olora
masks   scores whose mask switches entries of chosen kernels off         supsup
scales  small matrices that rescale kernels in earlier spaces            trgp, cuber
======  ===============================================================  ==================
"""
