"""What the checkpoints that also see have around their language model, which is what is taken."""

#: Fields that may stand beside the two halves of a config, and mean its text too.
SHARED_FIELDS = (
    "bos_token_id",
    "eos_token_id",
    "dtype",
    "torch_dtype",
    "tie_word_embeddings",
    "is_encoder_decoder",
    "quantization_config",
)
#: Canonical names of the tensors of the other half.
VISION_TENSORS = (r"(model\.)?(vision_tower|multi_modal_projector)\..*",)
#: What older and newer writers put before the names of the text's tensors.
TEXT_NAMES = (
    (r"^language_model\.(?=model\.|lm_head\.)", ""),
    (r"^model\.language_model\.", "model."),
)
