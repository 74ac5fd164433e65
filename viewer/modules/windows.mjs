// Windows for head-and-neck CT, in HU; the first one is shown at the start. Digits on the keyboard choose them.

export const WINDOWS = [
  { id: 'organnet-soft-tissue', name: 'Soft tissue', width: 350, centre: 40 },
  { id: 'organnet-brain', name: 'Brain', width: 80, centre: 40 },
  { id: 'organnet-optic', name: 'Orbit', width: 150, centre: 30 },
  { id: 'organnet-bone', name: 'Bone', width: 2000, centre: 400 },
  { id: 'organnet-air', name: 'Airway', width: 1500, centre: -500 },
];

/** OHIF's form of the windows, for its menu. */
export const presets = {
  CT: WINDOWS.map(({ id, name, width, centre }) => ({
    id,
    description: name,
    window: String(width),
    level: String(centre),
  })),
};
