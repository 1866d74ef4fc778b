"""Knowledge distillation: training with the outputs and features of a teacher as additional targets."""

from pquant.distillation.losses import Distiller, NoDistiller, feature_loss, soft_target_loss
from pquant.distillation.teacher import Distillation, NoDistillation, Teacher

__all__ = ["Distillation", "Distiller", "NoDistillation", "NoDistiller", "Teacher", "feature_loss", "soft_target_loss"]
