// Configuration of OHIF: this server is its only data source, and only modes are offered that suit a CT.
'use strict';

{
  const PROXY = '/proxy/dicom';

  const configuration = {
    routerBasename: '/ohif',
    showStudyList: true,
    extensions: ['/ohif/organnet/modules/extension.mjs'],
    modes: ['/ohif/organnet/modules/mode.mjs', '@ohif/mode-longitudinal'],
    customizationService: {},
    showPatientInfo: 'visible',
    investigationalUseDialog: { option: 'configure', days: 30 },
    whiteLabeling: {
      createLogoComponentFn: React => React.createElement('span', { className: 'organnet-logo' }, 'OrganNet Label'),
    },
    showCPUFallbackMessage: true,
    strictZSpacingForVolumeViewport: true,
    maxNumberOfWebWorkers: 3,
    maxNumRequests: { interaction: 100, thumbnail: 5, prefetch: 25 },
    defaultDataSourceName: 'organnet',
    dataSources: [
      {
        namespace: '@ohif/extension-default.dataSourcesModule.dicomweb',
        sourceName: 'organnet',
        configuration: {
          friendlyName: 'OrganNet Label',
          name: 'organnet',
          wadoUriRoot: `${PROXY}/wado`,
          qidoRoot: `${PROXY}/qido`,
          wadoRoot: `${PROXY}/wado`,
          qidoSupportsIncludeField: true,
          imageRendering: 'wadors',
          thumbnailRendering: 'wadors',
          enableStudyLazyLoad: true,
          supportsFuzzyMatching: true,
          supportsWildcard: true,
          supportsReject: false,
          dicomUploadEnabled: false,
          omitQuotationForMultipartRequest: true,
          bulkDataURI: { enabled: true },
        },
      },
    ],
  };

  // Registered before OHIF's own listener, so that `modules/guards.mjs` sees a step in the browser's history first.
  window.addEventListener('popstate', event => window.organnetOnHistory?.(event));

  // OHIF calls this before it loads its own modes: microscopy, PET and the like are not offered.
  window.config = async () => {
    window.modes.length = 0;
    return configuration;
  };
  window.config.routerBasename = configuration.routerBasename;
}
