/* Where constant data lies: flash that can be read like any memory needs no word about it. */
#ifndef FT_PLACE_H
#define FT_PLACE_H

#define FT_PLACE_MODEL
#define FT_PLACE_INPUTS
#define FT_PLACE_OUTPUTS
#define FT_PLACE_LABELS

#endif
