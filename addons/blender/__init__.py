"""Blender add-on of threedgen: a sidebar panel that sends prompts and meshes to a studio and imports the assets."""

import bpy
from bpy.props import BoolProperty, FloatProperty, IntProperty, PointerProperty, StringProperty

from .client import Job, Studio, StudioError
from .scene import export_mesh, import_asset, selected_mesh

TIMER_SECONDS = 0.25
_job: Job | None = None  # one at a time


class Preferences(bpy.types.AddonPreferences):
    bl_idname = __package__

    address: StringProperty(name="Address", description="As the studio printed it", default="http://127.0.0.1:8090")
    token: StringProperty(name="Token", description="Empty if the address contains the token", subtype="PASSWORD")

    def draw(self, context: bpy.types.Context) -> None:
        self.layout.prop(self, "address")
        self.layout.prop(self, "token")


class Settings(bpy.types.PropertyGroup):
    prompt: StringProperty(name="Prompt", description="Text such as: a red penguin")
    seed: IntProperty(name="Seed", description="Another seed makes another object", min=0)
    height: FloatProperty(name="Height", description="Metres; 0 is the object's usual height", min=0)


def start(context: bpy.types.Context, texture: bool) -> Job:
    """Start and return a job: make an object from the panel's prompt or, if `texture`, texture the selected mesh.

    Raises StudioError if the prompt is empty, no mesh is selected, or Blender may not go online.
    """
    global _job
    preferences, settings = context.preferences.addons[__package__].preferences, context.scene.threedgen
    studio = Studio(preferences.address, preferences.token)
    if not (studio.local or bpy.app.online_access):
        raise StudioError("Blender may not go online. Allow Online Access in Preferences > System")
    if not settings.prompt.strip():
        raise StudioError("The prompt is empty. Describe the object, for example: a red penguin")
    mesh = selected_mesh(context) if texture else None
    job = Job(studio, settings.prompt, settings.seed, settings.height, mesh.name if mesh else "")
    if mesh:
        export_mesh(context, mesh, job.mesh)
    job.start()
    _job = job
    return job


def forget() -> None:
    """Cancel the current job if it runs, delete its files, and clear the status bar."""
    global _job
    if _job is not None:
        _job.cancel()
        _job.folder.cleanup()
    _job = None
    show_status(None)


def show_status(text: str | None) -> None:
    """Show `text` in the status bar and redraw the panel. If `text` is None, restore Blender's own text."""
    for workspace in bpy.data.workspaces:
        workspace.status_text_set(text)
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            area.tag_redraw()


class THREEDGEN_OT_generate(bpy.types.Operator):
    """Make an asset with the studio and import it at the 3D cursor"""

    bl_idname = "threedgen.generate"
    bl_label = "Generate"
    bl_options = {"UNDO"}

    texture: BoolProperty(description="Texture the selected mesh", options={"SKIP_SAVE"})

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return _job is None and context.mode == "OBJECT"

    def invoke(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        try:
            start(context, self.texture)
        except StudioError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        self._timer = context.window_manager.event_timer_add(TIMER_SECONDS, window=context.window)
        context.window_manager.modal_handler_add(self)
        return {"RUNNING_MODAL"}

    def modal(self, context: bpy.types.Context, event: bpy.types.Event) -> set[str]:
        if event.type != "TIMER":
            return {"PASS_THROUGH"}
        if _job.is_alive():
            show_status(f"threedgen: {'cancelling' if _job.cancelled else _job.progress}")
            return {"PASS_THROUGH"}
        if _job.file and not _job.cancelled and context.mode != "OBJECT":
            show_status("threedgen: the asset is ready. Return to Object Mode to import it")
            return {"PASS_THROUGH"}
        context.window_manager.event_timer_remove(self._timer)
        return self._end(context)

    def cancel(self, context: bpy.types.Context) -> None:
        # Blender calls this when it opens another file or closes the window
        context.window_manager.event_timer_remove(self._timer)
        forget()

    def execute(self, context: bpy.types.Context) -> set[str]:
        # called from scripts: blocks until the asset is imported
        try:
            start(context, self.texture).join()
        except StudioError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        return self._end(context)

    def _end(self, context: bpy.types.Context) -> set[str]:
        try:
            if _job.cancelled:
                self.report({"INFO"}, "Cancelled. Generate again to continue the run")
                return {"CANCELLED"}
            if _job.error:
                raise StudioError(_job.error)
            found = import_asset(context, _job.file, _job.source)
            self.report({"INFO"}, f"Imported {found[0].name}")
            return {"FINISHED"}
        except StudioError as error:
            self.report({"ERROR"}, str(error))
            return {"CANCELLED"}
        finally:
            forget()


class THREEDGEN_OT_cancel(bpy.types.Operator):
    """Cancel the run"""

    bl_idname = "threedgen.cancel"
    bl_label = "Cancel"

    @classmethod
    def poll(cls, context: bpy.types.Context) -> bool:
        return _job is not None and not _job.cancelled

    def execute(self, context: bpy.types.Context) -> set[str]:
        _job.cancel()
        return {"FINISHED"}


class THREEDGEN_PT_panel(bpy.types.Panel):
    bl_label = bl_category = "threedgen"
    bl_space_type, bl_region_type = "VIEW_3D", "UI"

    def draw(self, context: bpy.types.Context) -> None:
        layout = self.layout
        layout.use_property_split, layout.use_property_decorate = True, False
        for name in ("prompt", "seed", "height"):
            layout.prop(context.scene.threedgen, name)
        layout.operator("threedgen.generate", icon="ADD").texture = False
        layout.operator("threedgen.generate", text="Texture Selected Mesh", icon="TEXTURE").texture = True
        if _job is not None:
            layout.progress(factor=_job.progress.fraction, text=str(_job.progress))
            layout.operator("threedgen.cancel", icon="X")


CLASSES = (Preferences, Settings, THREEDGEN_OT_generate, THREEDGEN_OT_cancel, THREEDGEN_PT_panel)


def register() -> None:
    for added in CLASSES:
        bpy.utils.register_class(added)
    bpy.types.Scene.threedgen = PointerProperty(type=Settings)


def unregister() -> None:
    forget()
    del bpy.types.Scene.threedgen
    for added in reversed(CLASSES):
        bpy.utils.unregister_class(added)
