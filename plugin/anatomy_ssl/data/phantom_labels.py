"""Label values of the phantom's organ maps, and its named landmarks in the atlas."""

from __future__ import annotations

from anatomy_ssl.data.phantom_canvas import Triple

ORGANS = (
    "background", "skin", "fat", "muscle", "lung_right", "lung_left", "heart", "airways", "aorta", "great_vessels",
    "oesophagus", "liver", "gallbladder", "stomach", "spleen", "pancreas", "kidney_right", "kidney_left", "bowel",
    "spine", "ribs", "cartilage", "sternum", "clavicles", "scapulae", "humeri", "pelvis", "breast",
)  # fmt: skip
LABELS = {name: value for value, name in enumerate(ORGANS)}

# Atlas mm, RAS+. Each lies inside the organ named with it; tips and domes a few mm below the organ's surface.
LANDMARKS: dict[str, tuple[str, Triple]] = {
    "carina": ("airways", (0, 0, 0)),
    "lung_apex_right": ("lung_right", (42, -18, 74)),
    "lung_apex_left": ("lung_left", (-42, -18, 74)),
    "diaphragm_dome_right": ("lung_right", (66, 28, -80)),
    "diaphragm_dome_left": ("lung_left", (-86, 22, -95)),
    "sternal_notch": ("sternum", (0, 43.5, 49)),
    "xiphoid": ("sternum", (0, 114, -104)),
    "clavicle_medial_right": ("clavicles", (24, 36.5, 56.5)),
    "clavicle_medial_left": ("clavicles", (-24, 36.5, 56.5)),
    "clavicle_lateral_right": ("clavicles", (141, -10, 85.5)),
    "clavicle_lateral_left": ("clavicles", (-141, -10, 85.5)),
    "humeral_head_right": ("humeri", (157, -16, 60)),
    "humeral_head_left": ("humeri", (-157, -16, 60)),
    "vertebra_T2": ("spine", (0, -36, 53)),
    "vertebra_T4": ("spine", (0, -45, 12)),
    "vertebra_T6": ("spine", (0, -50, -33)),
    "vertebra_T8": ("spine", (0, -52, -81)),
    "vertebra_T10": ("spine", (0, -49.5, -132)),
    "vertebra_T12": ("spine", (0, -41, -187)),
    "vertebra_L1": ("spine", (0, -34, -217)),
    "vertebra_L2": ("spine", (0, -27, -249)),
    "vertebra_L3": ("spine", (0, -22, -283)),
    "vertebra_L4": ("spine", (0, -22, -318)),
    "aortic_arch_top": ("aorta", (-6, 22, 32)),
    "aorta_at_T10": ("aorta", (-19.5, -25, -132)),
    "aortic_bifurcation": ("aorta", (-2, 6, -310)),
    "heart_centre": ("heart", (-18, 42, -66)),
    "heart_apex": ("heart", (-56, 68, -92)),
    "liver_dome": ("liver", (62, 22, -106)),
    "liver_tip": ("liver", (100, 14, -234)),
    "gallbladder_centre": ("gallbladder", (45, 62, -222)),
    "stomach_fundus": ("stomach", (-48, 4, -146)),
    "spleen_centre": ("spleen", (-106, -22, -165)),
    "kidney_right_centre": ("kidney_right", (58, -26, -228)),
    "kidney_left_centre": ("kidney_left", (-60, -26, -212)),
}
