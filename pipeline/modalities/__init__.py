"""Raw bytes -> stored bytes -> array -> x_BTD: one file a modality."""
