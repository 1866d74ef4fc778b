"""Knowledge distillation: a teacher's outputs and features as further targets of training."""

from pquant.distillation.losses import Distiller, NoDistiller, feature_loss, soft_target_loss
from pquant.distillation.teacher import Distillation, NoDistillation, Teacher

__all__ = ["Distillation", "Distiller", "NoDistillation", "NoDistiller", "Teacher", "feature_loss", "soft_target_loss"]
