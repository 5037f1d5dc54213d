/* What your own main calls. This file is yours: a second export leaves it as it is. */
#ifndef FEDTINY_APP_H
#define FEDTINY_APP_H

#ifdef __cplusplus
extern "C" {
#endif

/* Once, at boot: open the model, run its self-test, print the device's report. 0, or the runtime's negative status: the
 * model was refused, the text says why. */
int fedtiny_start(void);

/* Read one sample, run the model, print the answer. The index of the largest output; -1 if there was no sample, or if
 * fedtiny_start did not succeed. */
int fedtiny_run(void);

#ifdef __cplusplus
}
#endif
#endif
