from pvt_det.models.create import create_model, list_models

__all__ = ["create_model", "list_models"]
