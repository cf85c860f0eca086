# Writes what Godot 3 has imported from the GLB files of a project: godot3-server --path PROJECT -s read_in_godot.gd
extends SceneTree

var found = {}

func walk(file, node):
	if node is MeshInstance:
		var box = node.mesh.get_aabb()
		var arrays = node.mesh.surface_get_arrays(0)
		var material = node.mesh.surface_get_material(0)
		var maps = []
		if material:
			for name in ["albedo_texture", "normal_texture", "roughness_texture", "metallic_texture", "ao_texture"]:
				if material.get(name):
					maps.append(name)
		found[file]["meshes"][node.name] = {
			"triangles": arrays[Mesh.ARRAY_INDEX].size() / 3, "maps": maps,
			"low": [box.position.x, box.position.y, box.position.z], "high": [box.end.x, box.end.y, box.end.z]}
	if node is CollisionShape and node.shape is ConvexPolygonShape:
		var points = []
		for point in node.shape.points:
			point = node.get_parent().transform * node.transform * point
			points.append([point.x, point.y, point.z])
		var body = node.get_parent().name
		found[file]["convex"][body] = found[file]["convex"].get(body, []) + [points]
	for child in node.get_children():
		walk(file, child)

func _idle(_delta):
	return true  # ends the program also where a script error has left out quit()

func _init():
	var folder = Directory.new()
	folder.open("res://")
	folder.list_dir_begin()
	var file = folder.get_next()
	while file != "":
		if file.ends_with(".glb"):
			found[file] = {"meshes": {}, "convex": {}}
			walk(file, load("res://" + file).instance())
		file = folder.get_next()
	var out = File.new()
	out.open("res://godot.json", File.WRITE)
	out.store_string(to_json(found))
	out.close()
	quit()
