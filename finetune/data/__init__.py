import os

# importing Albumentations would otherwise ask the network for news
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
