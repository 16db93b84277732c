// The region that may change.
import { extend, largeEnough } from "./lasso.js";

export const region = {
  press: (state, point) => ({ area: [point], from: point }),

  pull: (state, { area, from }, point) => extend(state, area, from, point),

  release(state, { area }) {
    if (largeEnough(state, area)) state.history.change(() => state.drawing.region.push(area));
  },
};
