// The extension: OHIF loads it at run time, without a build.

import { commandsModule } from './commands.mjs';
import { setManagers } from './context.mjs';
import { PROTOCOL, protocol } from './layout.mjs';
import { PANEL } from './panel.mjs';

export const ID = '@organnet/extension';

/** An element of React, made by hand: OHIF's own copy of React is not reachable from here. @param {string} type */
const reactElement = type => ({
  $$typeof: Symbol.for('react.element'),
  type,
  key: null,
  ref: null,
  props: { class: 'organnet-host' },
  _owner: null,
  _store: {},
});

export default {
  id: ID,
  version: '1.0.0',
  preRegistration: setManagers,
  getPanelModule: () => [
    {
      name: 'organnet',
      iconName: 'tab-segmentation',
      iconLabel: 'OrganNet',
      label: 'OrganNet Label',
      component: () => reactElement(PANEL),
    },
  ],
  getHangingProtocolModule: () => [{ name: PROTOCOL, protocol }],
  getCommandsModule: () => commandsModule,
};
