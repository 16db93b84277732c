// Brush and eraser.
export const sketch = {
  press: (state, point) => ({
    stroke: { points: [point], size: state.brushSize, erase: state.tool === "eraser", colour: state.colour },
  }),

  pull(state, { stroke }, point, event) {
    for (const part of event.getCoalescedEvents ? event.getCoalescedEvents() : [event])
      stroke.points.push(state.position(part));
  },

  release: (state, { stroke }) => state.history.change(() => state.drawing.strokes.push(stroke)),
};
