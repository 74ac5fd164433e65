// Toolbar buttons for correcting contours, which MONAI Label's mode does not have.
'use strict';

window.organnet.brushes = (() => {
  const RADIUS_MM = 5;

  function radius(id, toolNames) {
    return {
      name: 'Radius (mm)',
      id,
      type: 'range',
      min: 0.5,
      max: 50,
      step: 0.5,
      value: RADIUS_MM,
      commands: { commandName: 'setBrushSize', commandOptions: { toolNames } },
    };
  }

  function shape(id, names, labels) {
    return {
      name: 'Shape',
      type: 'radio',
      id,
      value: names[0],
      values: names.map((value, n) => ({ value, label: labels[n] })),
      commands: 'setToolActiveToolbar',
    };
  }

  function tool(id, icon, label, names) {
    const about = { name: 'evaluate.cornerstone.segmentation', toolNames: names };
    const kind = id.toLowerCase();
    const options = [radius(`${kind}-radius`, names), shape(`${kind}-mode`, names, ['Circle', 'Sphere'])];
    return { id, icon, label, evaluate: { ...about, disabledText: 'Run the model first.' }, options };
  }

  const scissors = ['CircleScissor', 'SphereScissor', 'RectangleScissor'];
  return [
    {
      id: 'BrushTools',
      uiType: 'ohif.buttonGroup',
      props: {
        groupId: 'BrushTools',
        items: [
          tool('Brush', 'icon-tool-brush', 'Brush', ['CircularBrush', 'SphereBrush']),
          tool('Eraser', 'icon-tool-eraser', 'Eraser', ['CircularEraser', 'SphereEraser']),
        ],
      },
    },
    {
      id: 'Shapes',
      uiType: 'ohif.radioGroup',
      props: {
        label: 'Shapes',
        evaluate: { name: 'evaluate.cornerstone.segmentation', toolNames: scissors },
        icon: 'icon-tool-shape',
        options: [shape('shape-mode', scissors, ['Circle', 'Sphere', 'Rectangle'])],
      },
    },
  ];
})();
