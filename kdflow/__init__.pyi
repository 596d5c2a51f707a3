from kdflow.api import (
    Accuracy as Accuracy,
)
from kdflow.api import (
    BaseView as BaseView,
)
from kdflow.api import (
    Distillation as Distillation,
)
from kdflow.api import (
    DistillationStep as DistillationStep,
)
from kdflow.api import (
    Epoch as Epoch,
)
from kdflow.api import (
    ExtraLoss as ExtraLoss,
)
from kdflow.api import (
    Layers as Layers,
)
from kdflow.api import (
    LossInputs as LossInputs,
)
from kdflow.api import (
    Method as Method,
)
from kdflow.api import (
    Outputs as Outputs,
)
from kdflow.api import (
    Pick as Pick,
)
from kdflow.api import (
    RunTracker as RunTracker,
)
from kdflow.api import (
    StrongBatch as StrongBatch,
)
from kdflow.api import (
    StrongView as StrongView,
)
from kdflow.api import (
    Training as Training,
)
from kdflow.api import (
    UserError as UserError,
)
from kdflow.api import (
    build_loss as build_loss,
)
from kdflow.api import (
    create_model as create_model,
)
from kdflow.api import (
    distill as distill,
)
from kdflow.api import (
    distillation_loss as distillation_loss,
)
from kdflow.api import (
    list_methods as list_methods,
)
from kdflow.api import (
    load_method as load_method,
)
from kdflow.api import (
    pick_hardest as pick_hardest,
)
from kdflow.api import (
    strong_view as strong_view,
)

__version__: str
