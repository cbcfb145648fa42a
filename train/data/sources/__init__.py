"""Find data: folders, captions, masks, concepts, subsets."""
