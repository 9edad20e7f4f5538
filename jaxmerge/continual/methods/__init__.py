"""Published methods, one file each; importing this package registers them by name.

==============================  ========================================================
what it does                    methods
==============================  ========================================================
holds weights                   `l2`, `ewc`, `ewc_magmax`, `si`, `mas`
holds answers                   `lwf`, `pred_kd`, `feat_kd`, `prd`, `two_teachers`
replays examples                `er`, `der`, `derpp`, `clib`, `pl_fms`, `onpro`, `replay`
unlearns before it learns       `refresh`
projects what is learnt         `gpm`, `trgp`, `cuber`, `coso`, `osft`, `agem`, `gem`
a module for every task         `lora`, `olora`, `supsup`
averages clients                `fedavg`, `fot`
aligns the classifier           `slca`, `slcapp`
freezes the classifier          `lingocl`
learns pairs of image and text  `ctp`
trains a part                   `train_only`
==============================  ========================================================
"""

from jaxmerge.continual.methods.agem import agem
from jaxmerge.continual.methods.clib import clib
from jaxmerge.continual.methods.coso import coso
from jaxmerge.continual.methods.ctp import ctp
from jaxmerge.continual.methods.cuber import cuber
from jaxmerge.continual.methods.der import der, derpp
from jaxmerge.continual.methods.er import er
from jaxmerge.continual.methods.ewc import ewc
from jaxmerge.continual.methods.ewc_magmax import ewc_magmax
from jaxmerge.continual.methods.feat_kd import feat_kd
from jaxmerge.continual.methods.fedavg import fedavg
from jaxmerge.continual.methods.fot import fot
from jaxmerge.continual.methods.gem import gem
from jaxmerge.continual.methods.gpm import gpm
from jaxmerge.continual.methods.l2 import l2
from jaxmerge.continual.methods.lingocl import lingocl
from jaxmerge.continual.methods.lora import lora
from jaxmerge.continual.methods.lwf import lwf
from jaxmerge.continual.methods.mas import mas
from jaxmerge.continual.methods.olora import olora
from jaxmerge.continual.methods.onpro import onpro
from jaxmerge.continual.methods.osft import osft
from jaxmerge.continual.methods.pl_fms import pl_fms
from jaxmerge.continual.methods.prd import prd
from jaxmerge.continual.methods.pred_kd import pred_kd
from jaxmerge.continual.methods.refresh import refresh
from jaxmerge.continual.methods.replay import replay
from jaxmerge.continual.methods.si import si
from jaxmerge.continual.methods.slca import slca
from jaxmerge.continual.methods.slcapp import slcapp
from jaxmerge.continual.methods.supsup import supsup
from jaxmerge.continual.methods.train_only import train_only
from jaxmerge.continual.methods.trgp import trgp
from jaxmerge.continual.methods.two_teachers import two_teachers

__all__ = [
    "agem",
    "clib",
    "coso",
    "ctp",
    "cuber",
    "der",
    "derpp",
    "er",
    "ewc",
    "ewc_magmax",
    "feat_kd",
    "fedavg",
    "fot",
    "gem",
    "gpm",
    "l2",
    "lingocl",
    "lora",
    "lwf",
    "mas",
    "olora",
    "onpro",
    "osft",
    "pl_fms",
    "prd",
    "pred_kd",
    "refresh",
    "replay",
    "si",
    "slca",
    "slcapp",
    "supsup",
    "train_only",
    "trgp",
    "two_teachers",
]
